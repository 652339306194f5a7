"""Settings, paths, environment variables and file locks.

Only this room reads the settings file and the environment.
"""

"""Settings, paths, environment variables and file locks.

The settings file is read only here, and so is the environment, except the request of ``epochmeter run`` (`startup`) and one
variable of gRPC's.
"""

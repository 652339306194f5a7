"""Support for tests: stand-ins, rules and programs that are no tests themselves."""

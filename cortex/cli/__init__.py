"""
Commands that talk to a running fleet; one command a file.

They are clients of the gateway's HTTP API and know nothing else of it.  A command's module imports
only the standard library at its top: `--help` pays for nothing more.
"""

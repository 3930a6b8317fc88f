"""Tries to break the pack: damaged files, faults under saving, random graphs on a real server."""

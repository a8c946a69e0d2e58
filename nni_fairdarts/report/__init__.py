"""Runs and experiments as one HTML page that needs no network; see ``pages.write_report``."""

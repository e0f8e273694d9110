"""Artifacts beside torch on one CPU: what is measured, and the page that says so."""

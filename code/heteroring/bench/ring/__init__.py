"""The ring under one throttle setting: what is measured of it, and the run."""

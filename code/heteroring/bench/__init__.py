"""Measuring: ranks are launched, timed in one process group per throttle setting, and written down as rows."""

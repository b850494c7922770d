"""Charts of runs as Altair specifications, for the report and for `hq picture`."""

"""Questions asked of a study, one file each; `python -m analyses.<name> STUDY` answers one."""

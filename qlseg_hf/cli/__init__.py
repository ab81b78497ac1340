"""The command `qlseg`, one file per sub-command."""

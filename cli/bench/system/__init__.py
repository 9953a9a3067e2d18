"""The system under load: its addresses, board and users, or a system started for the run."""

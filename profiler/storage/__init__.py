"""Everything on disk: the run log, the usage ledger, the notes of crashes."""

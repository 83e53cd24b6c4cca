"""Ids in, ids out: draft, verify, accept, and which cycle comes next."""

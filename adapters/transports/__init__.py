"""Transports: how bytes come in and go out (MLLP)."""

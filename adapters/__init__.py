"""Bytes -> Source, and sockets -> bytes: one package per format, none imports another."""

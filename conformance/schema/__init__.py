"""The official R4 4.0.1 definitions as one JSON Schema (r4.json), and how it is made from them."""

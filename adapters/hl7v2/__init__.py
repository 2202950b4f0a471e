"""HL7 v2 delimiter format: reader and acknowledgements (HL7 v2.5.1 chapter 2)."""

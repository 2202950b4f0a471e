"""ECG files: HL7 aECG, GE MUSE RestingECG, Philips restingecgdata."""

"""DICOM Part 10 objects and study packages -> Source: studies, structured reports, documents, key images, ECG waveforms."""

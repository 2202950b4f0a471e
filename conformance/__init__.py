"""What Tongjian claims about FHIR R4, and how it is checked: issues, JSON, terminology, profiles, validation."""

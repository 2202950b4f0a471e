"""HTTP: the FHIR R4 REST API, CDS Hooks and operations."""

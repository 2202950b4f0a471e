"""FHIR search: parameters -> SQL -> pages."""

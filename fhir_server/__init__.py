"""State, network and policy: repository, inbox, identity, recognition, duplicate audit and the FHIR R4 API."""

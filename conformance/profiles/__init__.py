"""StructureDefinitions and ValueSets of ours, and how a resource is checked against a profile."""

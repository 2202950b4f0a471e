"""Which facility Patients are one person: pure matcher and link registry."""

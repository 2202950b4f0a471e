"""Recognition at order time: rules, candidates, decide(), ledger."""

"""The duplicate audit: the recognition check in retrospect."""

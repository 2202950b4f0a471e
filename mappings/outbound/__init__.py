"""Bundle -> the segments of a result message for one receiving facility, as values at paths; bytes are written by the adapters."""

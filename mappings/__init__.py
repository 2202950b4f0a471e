"""Source -> Bundle, and all knowledge about one hospital: profiles, code maps, units, times, ids, catalogue."""

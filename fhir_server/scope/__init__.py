"""Who may see what, compiled into SQL and into the bodies that leave."""

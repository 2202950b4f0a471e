"""The example county: invented people, their messages, and the story the demo tells over real sockets."""

"""The relay: a program on a front-end machine with a bad line, which stores messages and forwards them to the county's server."""

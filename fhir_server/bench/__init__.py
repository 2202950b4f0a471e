"""``tongjian bench``: how fast each part is on this machine, measured the way it is used."""

"""The seam between methods and what runs them, and what methods share.

Files here are the words of a federation (task, client, channel, method, ...), where clients run,
and the door between them and the server. Rooms hold what these need and what methods take from
them; pyproject.toml says which of all these may import which.
"""

"""Real servers that tests start: PostgreSQL, and in front of it one that speaks as PostgREST does.

A package, so that this folder never stands in the module path: `postgrest` and `postgres` are also libraries.
"""

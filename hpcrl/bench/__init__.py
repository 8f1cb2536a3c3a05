"""Measurements that print JSON; not timed tests."""

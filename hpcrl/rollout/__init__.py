"""Environments and policy together: a rollout of T steps on one device."""

"""The atomic steps as Redis Lua scripts; data only, read through scoreboard.runtime.resources."""

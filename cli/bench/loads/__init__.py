"""The loads that a user names: `lua`, `http`, `read`, `ws`, `flush`."""

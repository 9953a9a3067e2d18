"""What tests share: one module per concern, each a pytest plugin where it has fixtures."""

"""The framework: compose, plan, key, store, execute, record. It knows no model and no runtime."""

"""Which subnet a device gets: how architectures are proposed, scored, priced and chosen."""

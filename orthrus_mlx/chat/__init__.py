"""Text at both ends: messages to ids, within bounds and markup as text; ids to responses."""

"""Why something does not work and what would mend it. Reads facts, and touches no device."""

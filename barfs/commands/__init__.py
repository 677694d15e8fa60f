"""What a user types: a module a command. Only here is anything printed."""

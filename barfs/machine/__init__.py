"""The facts of a machine. Only here are sysfs and /proc read: functions, resources, the kernel."""

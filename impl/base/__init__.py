"""Read-only disks under an overlay."""

"""What ties archive, storage and index together: `store.SnapStore` is the one class that users hold."""

"""What lies on a disk: photos and other files, read with care and written whole or not at all."""

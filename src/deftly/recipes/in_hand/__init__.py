"""What in-hand rotation needs: grasps and gaits."""

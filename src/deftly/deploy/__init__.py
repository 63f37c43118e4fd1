"""What runs on the robot's computer: bundle, policy, safety, loop, server and client. No torch, no MuJoCo."""

"""How tiny-openvla was made: frames of experts, lessons from them, vision first, then everything."""

//! The SMART log of the drive below a path: for wear watch, the doctor, and `kiseki-devctl smart`.

use crate::devices::with_causes;
use kiseki_devices::nvme::admin::{AdminCommand, AdminNode};
use kiseki_devices::nvme::smart::SmartLog;
use kiseki_devices::topology::{KernelRoots, Topology};
use std::io;
use std::path::Path;

/// What asking for a log gave.
#[derive(Debug)]
pub enum SmartAnswer {
    /// The log.
    Log(Box<SmartLog>),
    /// There is no NVMe drive below it, so there is no such log.
    None,
    /// The drive was not asked, or did not answer, and why.
    Failed(String),
}

/// [`ask`] by a list of the machine's devices that may have failed: an image has no such log all the same, and of anything else
/// it is not known whether there is a drive below it.
#[must_use]
pub fn ask_listed(path: &Path, listed: &io::Result<Topology>, roots: &KernelRoots) -> SmartAnswer {
    match listed {
        Ok(topology) => ask(path, topology, roots),
        Err(_) if path.is_file() => SmartAnswer::None,
        Err(error) => SmartAnswer::Failed(error.to_string()),
    }
}

/// Asks the drive below a device, a partition of one, a controller, or an image.
#[must_use]
pub fn ask(path: &Path, topology: &Topology, roots: &KernelRoots) -> SmartAnswer {
    let is_controller = topology.controllers.iter().any(|controller| path == roots.dev.join(&controller.name));
    let node = topology.find_path(path).filter(|_| !path.is_file());
    // A namespace takes admin commands through its own nodes, also where there are several ways to it.
    let node = match node.and_then(|node| Some((node, node.device.nvme.as_ref()?))) {
        Some((node, nvme)) => roots.dev.join(nvme.generic.as_ref().unwrap_or(&node.device.name)),
        None if is_controller => path.to_owned(),
        None if path.exists() => return SmartAnswer::None,
        None => return SmartAnswer::Failed("it is not there".to_owned()),
    };
    let page = AdminNode::open(&node).and_then(|node| node.execute(&AdminCommand::smart_log()));
    match page.map(|page| SmartLog::parse(&page)) {
        Ok(Ok(log)) => SmartAnswer::Log(Box::new(log)),
        Ok(Err(error)) => SmartAnswer::Failed(error.to_string()),
        Err(error) => SmartAnswer::Failed(with_causes(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_log_and_what_can_not_be_asked_are_two_answers() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (path, text) in [
            ("sys/class/nvme/nvme0/model", "FAST 9000"),
            ("sys/block/nvme0n1/size", "2097152"),
            ("sys/block/nvme0n1/nvme0n1p1/partition", "1"),
            ("dev/nvme0n1", ""),
            ("dev/nvme0n1p1", ""),
            ("d0.img", ""),
        ] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let link = root.join("sys/block/nvme0n1/device");
        std::os::unix::fs::symlink(root.join("sys/class/nvme/nvme0"), link).unwrap();
        let roots = KernelRoots { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") };
        let topology = Topology::read(&roots).unwrap();
        let asked = |path: &str| ask(&root.join(path), &topology, &roots);
        assert!(matches!(asked("d0.img"), SmartAnswer::None));
        assert!(matches!(asked("gone.img"), SmartAnswer::Failed(_)));
        // A plain file in the place of a node is an image, whatever it is called; a controller's node is asked.
        assert!(matches!(asked("dev/nvme0n1"), SmartAnswer::None));
        assert!(matches!(asked("dev/nvme0"), SmartAnswer::Failed(_)), "there is no drive behind it");
        // Without a list of devices nobody knows what stands behind a node.
        let roots = KernelRoots { sys: root.join("nowhere"), ..roots };
        let listed = Topology::read(&roots);
        let asked = |path: &Path| ask_listed(path, &listed, &roots);
        assert!(matches!(asked(&root.join("d0.img")), SmartAnswer::None));
        let SmartAnswer::Failed(reason) = asked(Path::new("/dev/null")) else { panic!("it may be a drive") };
        assert!(reason.contains("nowhere/block can't be listed"), "{reason}");
    }
}
